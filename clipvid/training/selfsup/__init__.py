"""ConST-CL: learning from video alone."""
