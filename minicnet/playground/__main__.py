from minicnet import cli
from minicnet.playground import page

cli.run(page.main, page.parse_arguments())
