"""The stages of `gpu_check.py`: one file a stage, each run in a process of its own."""
