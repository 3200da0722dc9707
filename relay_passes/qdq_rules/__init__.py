"""Rules of QdqToInteger: what a float expression means in integers, and how it is written out.

``real``: the values of the abstract interpretation. ``recognize``: from float operators to those
values. ``emit``: from those values to q4 operators. ``residual``: the add of two of them.
"""
