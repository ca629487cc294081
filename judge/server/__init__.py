"""The HTTP server: `create_app` of a `JudgeService`. FastAPI and its friends come with `arbiter-vision[serve]`."""
