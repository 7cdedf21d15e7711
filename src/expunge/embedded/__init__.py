"""The one-machine stack and the demo: starts the other parts as processes, never imports them."""
