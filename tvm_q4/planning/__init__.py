"""Mixed precision by integer programming: which layers take 4 bits under which limits.

``problem`` is plain data, ``solver`` gives the optimum of it, ``proof`` makes the optimum certain;
``costs`` turns a layer table into a problem, ``infeasible``, ``explain`` and ``sweep`` say more
than one answer, and ``workflow`` is `tvm_q4.plan`.
"""
