"""A local page in the browser that shows what a trained network computes."""
