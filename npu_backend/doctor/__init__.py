"""Looks at an Ascend machine from outside and says how to mend what is wrong."""
