"""Videos of MiniGrid's BabyAI: its bot solves its missions, whose texts are the captions."""
