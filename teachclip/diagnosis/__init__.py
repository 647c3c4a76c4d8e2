"""Why a student falls short of its teacher."""
