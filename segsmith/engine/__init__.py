"""The data plane: units of work on images, and where they are done.

`work` has the work functions, `scheduler` decides which worker does which unit, `dispatch` drives workers until all
units are done, and `ray` starts workers as actors of a Ray cluster. Without Ray the agents do the same work in this
process, with the same functions.
"""
