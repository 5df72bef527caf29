"""One visit to a machine with a GPU: what goes there, what runs there, what comes back.

- `build` makes the folder that travels, `commit` keeps what came back, `rehearse` runs the whole
  visit without a GPU. They run where the repository is.
- `visit` runs there, with `environment`, `sweep`, `launches` and `recorder` as its steps' programs.

What `visit` imports is of the standard library alone: nothing there can be missing.
docs/gpu.md says how to use it.
"""
