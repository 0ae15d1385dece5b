"""Which equations lose the digits?"""
