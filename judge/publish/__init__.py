"""Publishing a trained run: its card, its repository on the hub, its merged model, and loading it from there again."""
