"""The mount: sessions as `<id>.jsonl` files that programs read, append to and rewrite without knowing the store.

Rule: here stands everything but FUSE itself. `names` says which session a name shows, `image` which bytes a session
shows, `looks` who saw what last, `handles` what an open file does; `plain`, `filesystem` and `serve` put them before
the kernel. Whatever a program does to a file, the log only grows.
"""
