"""The files of nano, in the folder `nano` beside this one. Data only: blip2rt finds and runs them."""
