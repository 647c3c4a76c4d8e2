"""Where texts come from if there are no captions: a bank of everyday words, names and tags; filtered by a teacher."""
