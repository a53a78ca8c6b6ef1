"""Published weights in and out: `convert` runs a family's rows both ways, `hub` knows the files."""
