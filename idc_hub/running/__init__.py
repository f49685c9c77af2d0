"""One machine or many: workers, how they are started, and the HR side that follows."""
