"""What is to be seen on a machine with a GPU, in stages that can be stopped and continued.

`command` starts a process per stage (`worker`), watches the budget and sums up; `journal` keeps the
rows that a stage has so far; each of the other files is a stage.
"""
