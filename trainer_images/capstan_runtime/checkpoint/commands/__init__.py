"""What `capstan checkpoint` does, one module for each kind of question; `cli.py` reads the command line."""
