"""The commands blip2rt-export, blip2rt-convert and optimum-cli."""
