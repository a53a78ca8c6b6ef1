"""`python -m jaxformer`."""

from jaxformer.cli import main

main()
