"""Whether the files under cluster/ would be taken as they are meant, found out without a cloud or a network.

`python -m cluster.check [FILE ...]` reads each file into `documents`, asks the rules for its kind (`launcher`,
`kubernetes`, `kustomization`, `schedules`) and prints what they find as `FILE:LINE: KEY.PATH: reason`.
"""
