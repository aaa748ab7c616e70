"""``fabrictap top``: this node on a terminal, from the recording alone.

``follow`` keeps a recording open over restarts of the agent, ``past`` what its series did tick by tick,
``read`` makes a :class:`~fabrictap.view.top.look.Look` of both: what there is to see. ``columns`` and
``table`` turn a look into lines, ``page`` puts them together for a size, ``screen`` is the terminal and
``app`` the loop.
Nothing of it asks the agent for anything.
"""
