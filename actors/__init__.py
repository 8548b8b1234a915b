"""What runs as a Ray actor: engines, scorers, and where they are placed. The classes are plain; the driver wraps them."""
