"""The process whose first call is timed: ``python -m first_call.child ROW LIBRARY SETTING FOLDER``."""

import time

if __name__ == "__main__":
    START = time.perf_counter()  # before anything else is imported
    from first_call import measure

    measure.main(START)
