"""Looking into stores from outside: reads their files, takes no lock, changes nothing.

What is here works when every process that used a store is dead, on a copy of its
files, and on damaged ones, as far as these can be read. The command line prints what
is found here.
"""
