"""Where is it wrong, and where does it come from?"""
