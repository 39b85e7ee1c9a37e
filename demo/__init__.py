"""A small world with known answers: captioned pictures, the web's warts, and a VAE trained on it.

drawing.py      numbers -> pixels: shapes, colours, backgrounds
scene.py        one captioned picture, from its seed
captions.py     what is in a picture -> one of many wordings
world.py        the pictures, and their image tars in the layout of img2dataset
pairs.py        preference pairs: the picture that matches the caption wins
warts.py        tars with broken samples, and what a reader must make of each
train_vae.py    trains the VAE in vae/ on the CPU
measure_vae.py  its PSNR on held-out pictures
run.py          every command of the demo in order, each resumable
report.py       the page at the end, with report_*.py, pictures.py and charts.py
longer_run.py   what a longer demo reached, for the page to say
"""
