"""How people and compilers write things in graphs: what several rules recognise and build."""
