"""A first recipe for a folder of videos: look at the folder and this machine, choose by written rules, estimate."""
