"""An interpreter for ML Programs: the shipped ``.mlpackage``, run through torch on any machine."""
