def draw_speed(*a):
    pass
