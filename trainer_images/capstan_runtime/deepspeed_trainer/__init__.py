"""The DeepSpeed engine: torch modules, ZeRO 0-3, one process per accelerator."""
