ROUNDS = {}
class Place:
    def __init__(self, place): pass
