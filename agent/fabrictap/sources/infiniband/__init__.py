"""Ports as sysfs shows them: ``source`` samples and folds, ``sysfs`` walks the tree, ``watch`` keeps files
open and backs off from those that fail, ``counters`` says which file becomes which metric."""
