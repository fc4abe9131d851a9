"""PID 1 of a pod: starts, watches and stops the trainer, and answers for it. Imports aiohttp and pydantic only."""
