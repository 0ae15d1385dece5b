"""Is training healthy?"""
