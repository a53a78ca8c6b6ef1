"""Alignment: to become what people prefer."""
