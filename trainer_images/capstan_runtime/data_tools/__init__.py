"""`capstan data`: looks at data sets, and makes token files of text."""
