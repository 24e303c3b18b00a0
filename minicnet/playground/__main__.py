from minicnet import cli
from minicnet.playground import server

cli.run(server.main, server.parse_arguments())
