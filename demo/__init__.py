"""A small world with known answers: captioned pictures, the web's warts, and a VAE trained on it.

drawing.py      numbers -> pixels: shapes, colours, backgrounds
captions.py     what is in a picture -> one of many wordings
world.py        the pictures, and their image tars in the layout of img2dataset
warts.py        tars with broken samples, and what a reader must make of each
train_vae.py    trains the VAE in vae/ on the CPU
measure_vae.py  its PSNR on held-out pictures
"""
