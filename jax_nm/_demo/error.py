"""The demo's own error, told apart from failures inside JAX, which keep a traceback."""


class DemoError(RuntimeError):
    """The demo cannot give a meaningful result here; the message says why."""
