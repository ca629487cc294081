"""The obedience suite: does a classifier obey a taxonomy and ignore a prompt, however both are worded?"""
