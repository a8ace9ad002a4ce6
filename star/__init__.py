"""STAR: attention decides where, and at which denoising step, an advantage acts.

The packages, from the top; each imports those below it, never above: ``study`` and ``pretraining``,
``report``, ``plan``, ``training``, ``evaluation``, ``preflight``, ``rewards``,
``miniature``, ``policy``, ``method`` (the paper), ``prompts``, ``config``, ``system``.
"""
