"""Questions about pictures: the command ``python -m lavis_ext.ask``, and its pipeline in Python."""
