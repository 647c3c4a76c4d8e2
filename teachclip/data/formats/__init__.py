"""Readers of annotation formats, one module each; `FORMATS` names them."""
