"""A page on this machine where one drops a picture and asks: ``python -m lavis_ext.serve``."""
