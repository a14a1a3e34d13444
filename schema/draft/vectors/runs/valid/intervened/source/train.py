w, v = [1.0, -2.0], [0.0, 0.0]
for _ in range(2):
    v = [v / 2 + w for v, w in zip(v, w)]
    w = [w - v / 2 for v, w in zip(v, w)]
