"""Equal tuning: knobs, points, pilot runs, and the winner."""
