"""What a program will read next, as far as that is written in what it is made of.

A command names a program, a program its libraries, a script and compiled Python code what they
import. All of it is a hint: what is wrong costs a request, and nothing of it is ever executed.
"""
