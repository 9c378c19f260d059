"""All that a worker needs: the server that forks workers imports this module first.

What has been imported stays, so the garbage collector neither looks at it here nor, in a worker,
copies its memory by looking.
"""

import gc

gc.disable()

import sklearn.cluster  # noqa: E402, F401

import moist.study.trainer  # noqa: E402, F401

gc.freeze()
gc.enable()
